"""``llama-server`` for tests: the server of the wheel xllamacpp, with the real one's arguments.

Prints the address once it listens, and serves until it is killed.
"""

import argparse
import signal

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", required=True)
    parser.add_argument("--swa-full", action="store_true")
    arguments = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.m
    params.swa_full = arguments.swa_full
    params.n_parallel = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
