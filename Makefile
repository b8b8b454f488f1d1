# check: everything that is quick; test: everything; demo: the README's main job.
.PHONY: check lint test demo

lint:
	ruff format --check .
	ruff check .
	mypy

check: lint
	pytest -q -n 2 -m "not slow and not gpu"

test:
	pytest -q -n 2

demo:
	python tools/pretrain.py
