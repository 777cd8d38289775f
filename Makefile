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
	@# Many tests wait for the disk or for another process: one more than there are cores.
	@ctest --preset release -j$$(($$(nproc) + 1))
	@tools/sanitize

clean:
	rm -rf build
