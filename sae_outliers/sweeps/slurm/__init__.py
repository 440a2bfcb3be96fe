"""A sweep on SLURM, behind schedulers/slurm.py.

profile (what the cluster has) and arrays (the plan, cut) -> submit (all calls of sbatch, with their dependencies) ->
task (what a job runs, from the snapshot of the code) -> queue (what SLURM says of the jobs).
"""
