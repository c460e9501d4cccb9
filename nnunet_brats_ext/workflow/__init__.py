"""Recipes: a paper as a graph of nnU-Net's and our commands, run by Snakemake on one machine or on a cluster.

`recipe` reads and checks the YAML, `graph` turns it into jobs, `Snakefile` hands those to the engine, `perform` does
one of them, `run` and `status` are the commands. Nothing here computes: a job is a command line that one could type.
"""
