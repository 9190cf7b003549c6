"""The stages of one experiment on several workers: DVC's graph is the plan, dvc.lock the result, and Parsl starts the workers.

The coordinator holds DVC's lock and is the only one that writes dvc.lock. It takes a snapshot of all that stages read and works
on that. A worker runs one stage in a workspace of its own, which holds what this stage reads, and gives back what it would have
noted in dvc.lock; the content is in DVC's cache.
"""
