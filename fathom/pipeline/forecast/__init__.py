"""What a recipe will take before it runs: parameters, memory, tokens, time and disk, step by step."""
