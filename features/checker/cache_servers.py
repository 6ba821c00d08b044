"""The checker's L2: a primary, its replica and three Sentinels, each server reached through a proxy only.

Servers announce the ports of their proxies, so clients, Sentinels and the replica all come that way, and a link that is
cut is cut for all of them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from mlserve.servers.process import LOOPBACK
from mlserve.servers.record import new_password
from mlserve.servers.tcp_proxy import ProxyThread, TcpProxy
from mlserve.servers.valkey_node import ValkeyProcess, replicating, sentinel_url, watching

SERVICE = "mlserve-checked"
DOWN_AFTER_MS = 600
"""How long a server may be silent before the Sentinels hold it for dead."""
FAILOVER_TIMEOUT_MS = 1_500
"""Twice this passes between two failovers of the Sentinels' own accord."""
Pause = Callable[[float], None]
_LOOK_S = 0.05
_ANSWER_S = 1.0


class NotMended(Exception):
    """The servers did not come back as one primary with its replica."""


class Node:
    """A server or a Sentinel with a client that reaches it directly."""

    def __init__(self, process: ValkeyProcess, password: str) -> None:
        self.process = process
        self.client: Any = redis.Redis(
            LOOPBACK, process.port, password=password, decode_responses=True, socket_timeout=_ANSWER_S
        )
        self.raw_client: Any = redis.Redis(LOOPBACK, process.port, password=password, socket_timeout=_ANSWER_S)

    def info(self, section: str) -> dict[str, Any]:
        """Empty if it does not answer."""
        try:
            found: dict[str, Any] = self.client.info(section)
        except redis.RedisError:
            return {}
        return found


class CacheServers:
    """Started from the thread that made it; `pause` is how it waits."""

    def __init__(self, home: Path, *, pause: Pause) -> None:
        self._pause = pause
        self._password = new_password()
        self._proxy_thread = ProxyThread()
        self.proxies: list[TcpProxy] = []
        self.servers: list[Node] = []
        for number in range(2):
            proxy = TcpProxy(self._proxy_thread, 0)
            settings = {
                "maxmemory": "128mb",
                "maxmemory-policy": "volatile-lfu",
                "appendonly": "no",
                "save": '""',
                "hash-max-listpack-value": "2048",
                **replicating(self._password),
                "replica-announce-ip": LOOPBACK,
                "replica-announce-port": str(proxy.port),
            }
            node = self._node(home / f"server-{number}", settings)
            proxy.target_port = node.process.port
            self.proxies.append(proxy)
            self.servers.append(node)
        watched = watching(
            SERVICE,
            self.proxies[0].port,
            password=self._password,
            down_after_ms=DOWN_AFTER_MS,
            failover_timeout_ms=FAILOVER_TIMEOUT_MS,
        )
        self.sentinels = [self._node(home / f"sentinel-{number}", watched, sentinel=True) for number in range(3)]

    def _node(self, directory: Path, settings: dict[str, str], *, sentinel: bool = False) -> Node:
        process = ValkeyProcess(directory, settings, password=self._password, sentinel=sentinel)
        return Node(process, self._password)

    @property
    def url(self) -> str:
        addresses = [sentinel.process.address for sentinel in self.sentinels]
        return sentinel_url(SERVICE, addresses, password=self._password)

    def start(self) -> None:
        for node in self.servers:
            node.process.start()
        self.wait(lambda: all(node.info("server") for node in self.servers), within_s=10)
        self.servers[1].client.replicaof(LOOPBACK, self.proxies[0].port)
        for sentinel in self.sentinels:
            sentinel.process.start()
        self.wait(self.is_whole, within_s=20)

    def stop(self) -> None:
        for node in [*self.sentinels, *self.servers]:
            node.process.kill()
            node.client.close()
            node.raw_client.close()
        self._proxy_thread.close()

    # --- who is who ---

    def primary_place(self) -> int:
        """Of the server that most Sentinels name. Raises NotMended if none answers."""
        named = [int(state["port"]) for state in self._states()]
        if not named:
            raise NotMended("no Sentinel answers")
        port = max(set(named), key=named.count)
        return next(place for place, proxy in enumerate(self.proxies) if proxy.port == port)

    def primary(self) -> Node:
        return self.servers[self.primary_place()]

    def is_whole(self) -> bool:
        """One primary with its replica in step, on which all Sentinels agree, and which they could fail over."""
        states = self._states()
        if len(states) < len(self.sentinels) or len({state["port"] for state in states}) != 1:
            return False
        if any(set(state["flags"].split(",")) != {"master"} for state in states):
            return False
        if any(int(state["num-other-sentinels"]) != 2 or int(state["num-slaves"]) != 1 for state in states):
            return False
        place = self.primary_place()
        if self.servers[place].info("replication").get("role") != "master":
            return False
        follows = self.servers[1 - place].info("replication")
        in_step = follows.get("role") == "slave" and follows.get("master_port") == self.proxies[place].port
        return in_step and follows.get("master_link_status") == "up" and self._replica_is_known()

    def _replica_is_known(self) -> bool:
        try:
            known = [replica for node in self.sentinels for replica in node.client.sentinel_slaves(SERVICE)]
        except redis.RedisError:
            return False
        return all(set(replica["flags"].split(",")) == {"slave"} for replica in known)

    def _states(self) -> list[dict[str, Any]]:
        """The service as each Sentinel that answers sees it."""
        states = []
        for sentinel in self.sentinels:
            try:
                states.append(sentinel.client.sentinel_master(SERVICE))
            except redis.RedisError:
                continue
        return states

    # --- breaking and mending ---

    def wait_for_another_primary(self, before: int, *, within_s: float) -> bool:
        """Whether the Sentinels name another server than `before` in time."""
        return self.wait(lambda: self.primary_place() != before, within_s=within_s, fails=False)

    def fail_over(self) -> None:
        """As an operator does it, with both servers alive."""
        self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", SERVICE)

    def mend(self, *, within_s: float = 40.0) -> None:
        """Everything runs, links are whole, the replica follows. Raises NotMended."""
        for proxy in self.proxies:
            proxy.mend()
        for node in [*self.servers, *self.sentinels]:
            node.process.thaw()
            node.process.start()

        def whole() -> bool:
            if self.is_whole():
                return True
            self._lead_astray_back()
            return False

        self.wait(whole, within_s=within_s)

    def _lead_astray_back(self) -> None:
        """The Sentinels would make an old primary a replica as well, some ten seconds later."""
        place = self.primary_place()
        primary, other = self.servers[place].info("replication"), self.servers[1 - place].info("replication")
        if primary.get("role") == "master" and other and other.get("master_port") != self.proxies[place].port:
            self.servers[1 - place].client.replicaof(LOOPBACK, self.proxies[place].port)

    def wait(self, condition: Callable[[], bool], *, within_s: float, fails: bool = True) -> bool:
        for _ in range(int(within_s / _LOOK_S)):
            try:
                if condition():
                    return True
            except (redis.RedisError, NotMended):
                pass
            self._pause(_LOOK_S)
        if fails:
            raise NotMended(f"not within {within_s:g} s; the Sentinels say {self._states()}")
        return False
