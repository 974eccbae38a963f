"""A declared matrix of trainings: models x tasks x budgets x contenders x seeds, resumable, a line of JSON for each.

matrix (what is asked for) -> jobs (rank, tune, run, in this order) -> setting (a model and a task) -> work (one job)
-> records (results.jsonl) -> pool (several processes)
"""
