"""People decide on labelled rows: accept, correct or reject, by keyboard.

labels.jsonl ──decisions.py──> app.py, page/ ──a key──> decisions.py ──> labels.jsonl
                   └──exchange.py──> Label Studio's JSON, TRL's columns, and back
"""
