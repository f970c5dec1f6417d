"""Uncertainty by fact: one bootstrap, one interval and one verdict algebra.

`resampling` draws facts, `bootstrap` estimates statistics of column means,
`intervals` reads intervals from draws, and `verdict` judges them. `accuracy`,
`gaps`, `clipped`, `forgetting` and `power` are the statistics of answers.
`seeds` has those of several training runs.

Some computations stay apart, because a common one would change the figures of
earlier records:

* `erasure` bootstraps ratios by `resampling` and `intervals` alone. The exact
  bounds that `bootstrap` adds for few events apply to shares.
* `circuits.stability` gives central ranges over draws
  (`intervals.central_range`), without widened tails: they describe how
  selections vary. Its comparison of phrasings uses the jackknife.
* `experiments.circuit_worth_table` resamples facts and circuits by multinomial
  draws, which is another random stream.
"""
