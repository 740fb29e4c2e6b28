"""What is added to a linear's product while its own weight stays as it is: LoRA and its kin."""
