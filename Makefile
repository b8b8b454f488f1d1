# check: lint and the fast tests, under 5 minutes on 2 cores; test: all tests; demo: the README's main job.
.PHONY: check lint test demo

lint:
	ruff format --check .
	ruff check .
	mypy

check: lint
	pytest -q -n 2 --dist worksteal -m "not slow and not gpu"

test:
	pytest -q -n 2 --dist worksteal

demo:
	python tools/pretrain.py
