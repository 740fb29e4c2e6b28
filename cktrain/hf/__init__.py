"""What all families share of Hugging Face's files: config.json, safetensors, whole folders."""
