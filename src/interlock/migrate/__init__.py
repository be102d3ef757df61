"""Moves the learner of a run to another device, or a whole run to another machine.

    RUN, device ── proof ──> certificate, updates, canary ── moving ──> Move in the manifest
    RUN ── bundle ──> one file with digests ── on the other machine ──> RUN, then as above

A device that does not prove itself gets nothing: the run stays as it was.
"""
