"""The live page: `interlock watch RUN…` shows runs while they go on, from their directories alone.

    run directory ──following.py──> series.py ──app.py, server-sent events──> page/ (uPlot)
                    answers.py: what was answered, from the ledger ──┘

It writes nothing and asks nobody but the server that it came from.
"""
