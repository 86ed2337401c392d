"""Reports of plans: figures as data (`figures`), and drawings (`plan_svg`). Printing is in `flagsplit.apps.cli`."""
