"""How fast evsync is, beside what else would do the same work: `python -m benchmarks [NAME …]`.

One idea per file; each has a `TITLE`, `NOTES` (what is compared, and what limits it) and `measure()`. Peers run in
the same rounds on the same disk, because absolute numbers of a shared machine mean little and ratios something.
Nothing here is a test: no time is asserted, a requirement that is missed is printed as missed.
"""
