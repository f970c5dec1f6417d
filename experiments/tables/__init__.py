"""The tables of README.md and experiments/RESULTS.md, from stored records.

    python -m experiments.tables [NAME ...]
    python -m experiments.tables --write [NAME ...]
    python -m experiments.tables store RUN DEST
    python -m experiments.tables rejudge FOLDER ...

The first command prints tables as Markdown; without names, all of them. The
second puts them into the pages, each between `<!-- table: NAME -->` and
`<!-- end -->`. The third stores a finished workdir, as in

    python -m experiments.tables store runs/quickstart \\
        experiments/results/quickstart/s0

The fourth judges stored runs again from their answers, after the rules have
changed.

A table has the runs that are stored in experiments/results and leaves out the
others.
"""
