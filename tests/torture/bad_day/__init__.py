"""A bad day: live traffic through one fault after the other, and a judge of what is left in the end.

`day.py` tells the story. `plan.py` says what breaks when, `postgres_faults.py`, `valkey_faults.py` and
`process_faults.py` break it, `requests.py` and `traffic.py` ask meanwhile, `ledger.py` remembers what was answered,
`conduct.py` holds each answer against what may be seen while something is broken, and `judge.py` holds what is left
against what was promised; `evidence.py` gathers that.
"""
