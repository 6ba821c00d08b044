"""What lies in the spool: its files and lines, what is settled of them, what was refused, and which ids are known."""
