"""The experiments of the documents that the methods come from, run again; results under benchmarks/results/seeds_*."""
