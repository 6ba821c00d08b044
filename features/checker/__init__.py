"""Tries to break the proof of freshness: clients on real servers under faults, and a judgement of what they saw.

`run.py` tells the story. `clients` write and read through the application's own paths and log what they were told
(`history.py`); `faults.py` breaks servers and processes meanwhile; `verdict.py` judges the merged history.
(FRESHNESS, "The checker: test form"; the manner is that of Jepsen's register tests.)
"""
