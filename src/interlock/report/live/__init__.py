"""The live page: `interlock watch RUN…` shows runs while they go on, from their directories alone.

    run directory ──following.py──> series.py ──telling.py──> app.py ──server-sent events──> page/
                  │ drawn.py: of a line what is drawn             │                       (uPlot)
                  └─answers.py: what was answered, from the ledger┘
    watchers.py reads what is new, at once where somebody looks

It writes nothing and asks nobody but the server that it came from.
"""
