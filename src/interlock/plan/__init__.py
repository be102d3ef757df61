"""Which chips, how long, how much: a recipe planned before it is run.

chips, shapes, prices (tables)     constants <── fit <── rows, decode_rows (published runs)
        |                              |                     |
        v                              v                     v
roles, sharding ──> seconds ──> estimate ──> plan ──> told, verdicts     validate
                                               ^
                   profile (bench, --like) ────┘ └── search (--find)
"""
