"""One benchmark of the most important rows of the guides' tables of speed.

python tests/benchmarks [--device=gpu] [--only=adm,ddp_t] [--minutes=8] [--rounds=2]

See `driver.py`.
"""

from driver import main

main()
