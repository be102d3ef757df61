"""Says what a machine has, what it lacks, and the remedy.

    survey (survey.py) ──> Machine: plain facts (machine.py) ── diagnose (diagnosis.py) ──> lines
                └ torch in a process of its own, tools with deadlines
    sheet.py: the lines as a terminal shows them

Nothing here needs torch, or raises: what cannot be found out is a fact as well.
"""
