"""From text to batches: corpus -> tokenizer -> shards (`prepare`) -> batches (`loader`)."""
