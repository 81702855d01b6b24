"""What a person runs offline: data, training, evaluation, auditing, benchmarks."""
