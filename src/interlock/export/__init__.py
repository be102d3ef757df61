"""A model as other software wants it: a Hugging Face directory with a card, or a GGUF file.

    MODEL | RUN ──source.py──> files, name, run ─┬─ directory.py, card.py ──> NAME/ ─────┐
                                                 └─ gguf_file.py ──────────> NAME.gguf ─┴─ push.py

Weights are read, converted and written tensor by tensor, so a model larger than the memory passes.
What is written appears whole under its name, on the disk, or not at all; nothing is replaced.
"""
