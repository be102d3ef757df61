"""`interlock qualify --fleet` on simulated nodes: network namespaces on one machine (Linux, root).

    node1 … node4, each with four simulated devices ── veth, htb per destination ── one bridge
    one bad chip on node3, one slow link between node2 and node4; --cut: that link is cut instead,
    once half a transfer is over it; --sound: neither

Prints what the command prints, and whether exactly the planted faults were named. What it made is
removed again.

    python bench/qualify_fleet.py --out /tmp/fleet
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

NODES = 4
DEFECT = "matmul-bf16"
BAD = (3, 2)  # node, device
SLOW = (2, 4)  # nodes
BRIDGE = "fleet-bridge"
CUT_BYTES = 3 << 20  # over the link before it is cut


def sh(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


def address(node: int) -> str:
    return f"10.99.0.{node}"


def build(usual: str, slow: str) -> None:
    """The namespaces, with a class of traffic for each destination."""
    sh(f"ip link add {BRIDGE} type bridge")
    sh(f"ip link set {BRIDGE} up")
    for node in range(1, NODES + 1):
        name = f"node{node}"
        sh(f"ip netns add {name}")
        sh(f"ip link add fleet-{node} type veth peer name eth0 netns {name}")
        sh(f"ip link set fleet-{node} master {BRIDGE} up")
        sh(f"ip -n {name} addr add {address(node)}/24 dev eth0")
        sh(f"ip -n {name} link set eth0 up")
        sh(f"ip -n {name} link set lo up")
        sh(f"tc -n {name} qdisc add dev eth0 root handle 1: htb")
        for other in range(1, NODES + 1):
            rate = slow if {node, other} == set(SLOW) else usual
            sh(
                f"tc -n {name} class add dev eth0 parent 1: classid 1:{other} "
                f"htb rate {rate} quantum 60000"
            )
            sh(
                f"tc -n {name} filter add dev eth0 parent 1: protocol ip u32 "
                f"match ip dst {address(other)}/32 flowid 1:{other}"
            )


def remove() -> None:
    for node in range(1, NODES + 1):
        # The link by itself: with its namespace it would go some time later.
        for made in (["link", "del", f"fleet-{node}"], ["netns", "del", f"node{node}"]):
            subprocess.run(["ip", *made], capture_output=True, timeout=30)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, timeout=30)


def cut() -> None:
    """Lose what one node sends to the other, as soon as enough has gone over."""
    node, other = SLOW
    while True:
        shown = sh(f"tc -s -n node{node} class show dev eth0 classid 1:{other}")
        sent = re.search(r"Sent (\d+) bytes", shown)
        if sent and int(sent[1]) > CUT_BYTES:
            break
        time.sleep(0.02)
    sh(f"ip -n node{node} neigh replace {address(other)} lladdr 02:00:00:00:00:99 dev eth0")
    print(f"node{node} no longer reaches node{other}", flush=True)


def hosts(devices: int, sound: bool) -> str:
    lines = []
    for node in range(1, NODES + 1):
        names = ["sim"] * devices
        if node == BAD[0] and not sound:
            names[min(BAD[1], devices - 1)] = f"sim:{DEFECT}"
        lines += ["[[host]]", f'name = "node{node}"', f'address = "{address(node)}"']
        lines += [f"devices = {json.dumps(names)}", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="versions,operators,forward")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--usual", default="800mbit")
    parser.add_argument("--slow", default="100mbit")
    faults = parser.add_mutually_exclusive_group()
    faults.add_argument("--cut", action="store_true")
    faults.add_argument("--sound", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "hosts.toml"
    file.write_text(hosts(given.devices, given.sound))
    remove()
    try:
        build(given.usual, given.usual if given.cut or given.sound else given.slow)
        if given.cut:
            threading.Thread(target=cut, daemon=True).start()
        command = [sys.executable, "-m", "interlock.cli", "qualify", "--fleet", str(file)]
        command += ["--remote-shell", "ip netns exec", "--remote-python", sys.executable]
        command += ["--only", given.only, "--out", str(given.out)]
        began = time.monotonic()
        subprocess.run(command, check=False)
        print(f"{time.monotonic() - began:.0f} s")
    finally:
        remove()
    found = json.loads((given.out / "fleet.json").read_text())
    named = sorted(trouble["name"] for trouble in found["troubles"])
    faulty = sorted([f"node{BAD[0]} sim:{DEFECT}", f"node{SLOW[0]} – node{SLOW[1]}"])
    planted = [] if given.sound else faulty
    print("named exactly what was planted" if named == planted else f"named {named}")


if __name__ == "__main__":
    main()
