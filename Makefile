# Two commands for a bare Debian 12, each doing all of its set-up: make demo, make test.
.PHONY: demo test build setup clean

setup:
	@tools/setup

build: setup
	@cmake --preset release >/dev/null
	@cmake --build --preset release

demo: setup
	@tools/demo

# The whole suite; then, under the sanitizers, the tests that are quick there.
test: build
	@ctest --preset release -j2
	@tools/sanitize

clean:
	rm -rf build
