# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion serve` over fake workers: fake_server.py --config FILE --port N --stream-port N.

What it needs is imported in `main`, since every worker imports this file again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    import uvloop
    from fake_worker import fake_worker_main

    from capibara_axion.server import logs
    from capibara_axion.server.config_file import load_config
    from capibara_axion.server.serve import Listen, serve

    # The forkserver looks for what it preloads nowhere else.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stream-port", type=int, required=True)
    args = parser.parse_args()
    logs.configure("info", "text")
    api_key = os.environ.get("CAPIBARA_AXION_API_KEY")
    admin_key = os.environ.get("CAPIBARA_AXION_ADMIN_KEY")
    listen = Listen("127.0.0.1", args.port, args.stream_port, api_key, admin_key)
    config = load_config(args.config)
    uvloop.run(
        serve(
            config, args.config, listen, "info", worker=fake_worker_main, preload=["fake_preload"]
        )
    )


if __name__ == "__main__":
    main()
