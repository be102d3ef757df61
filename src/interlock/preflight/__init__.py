"""`interlock preflight`: one command on a bare machine with an accelerator, one folder to commit.

    device ──identity.py──> stack ──> sections.py, one after another (runner.py) ──> the folder
                                        └─ each a process with a deadline (command.py)

It fetches nothing. A section is another verb of Interlock, the tests that are marked gpu, or a
measurement of this room (decode.py, learner.py); one that fails or hangs does not stop the others.
"""
