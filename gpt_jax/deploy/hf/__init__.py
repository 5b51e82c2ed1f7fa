"""Models of the Hugging Face hub's layout, in and out without loss.

A folder holds config.json, safetensors and a tokenizer. An architecture is one
entry of architectures.py.
"""
