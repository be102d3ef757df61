"""GGUF files of a supported family, made Hugging Face directories, which all else here reads.

header.py      what the file says it holds, held against its size
settings.py    metadata ──> config.json
vocabulary.py  tokens, merges, chat template ──> tokenizer.json, tokenizer_config.json
weights.py     tensors, dequantised one at a time
convert.py     the whole
"""
