"""Code by hidden tests: two processes, each in a sandbox of its own, that exchange plain data.

    answer ── extract ──> program_side.py ──────────┐ calls: plain data
                          runs what the model wrote │
                                                    ├── grading.py, between them: bounds, deadline
    tests  ─────────────> grader_side.py ───────────┘ values: plain data
                          runs the tests; `candidate` is a stand-in that asks the program
                            └── outcome with a nonce ──> Verdict

What the model wrote never runs where it is judged: it neither sees the tests nor anything that they
compare with, and all that it can say is what its function returned. docs/code_rewards.md.
"""
