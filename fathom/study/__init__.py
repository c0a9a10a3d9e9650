"""Papers' claims as small experiments with tables and figures, and the MoE models that preceded DeepSeek's."""
