"""A sweep's way through SLURM, from the plan to what became of its tasks.

site (the cluster's profile) and batches (the plan, cut) -> sbatch (one call of it) -> submission (all of them, with
their dependencies) -> submitted (what a task runs, from the snapshot of the code) -> waiting. dry_run prints the way
without going it; under_way knows what other sweeps have submitted.
"""
