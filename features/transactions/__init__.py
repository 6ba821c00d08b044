"""Transactions in: files and simulations become rows of the ledger."""
