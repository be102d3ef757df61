"""Runs what a model wrote, isolated, or refuses.

    open_sandbox ── canary ──> Sandbox: bubblewrap │ Landlock │ SandboxError, one line
        run(sandbox, program) ──> Ran: how it ended, what it said        (running.py)
        Child(module, around=sandbox.around(…))   a process that is asked again and again
                          └─ apart(work): every answer in a fork of its own    (forks.py)

Whoever starts a sandbox starts inside.py in it, which takes the last rights away and then becomes
the program. What is promised, and what is not: docs/security.md.
"""
