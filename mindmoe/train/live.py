"""Who runs in a run folder: one set of processes at a time, and each of them notices when it is not wanted any more.

Two files say who. `.live.lock` is locked (flock) by every process of a run for as long as it lives; the kernel unlocks
it when the process ends, in whatever way, so on one machine a crash blocks nobody. `live.json` names the process that
started the run and changes while that lives; where another machine may have written it, its silence decides. Clocks of
two machines are never compared: times of files are those of the server that holds them.

Who wants to take over leaves a request, and waits until the folder is free. Whoever was taken for dead and is not finds
another name in `live.json`, and stops; it could not publish a checkpoint either (`checkpoint/store.py`).
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mindmoe.host import strict_json
from mindmoe.host.env import Place, launch_mark, launcher
from mindmoe.host.errors import UserError
from mindmoe.host.files import replace_file, shown
from mindmoe.host.position import standing
from mindmoe.host.processes import birth, end_all, kernel, launcher_gone, marked
from mindmoe.launch.config import LaunchConfig
from mindmoe.train.guard import EXIT_ORPHANED, EXIT_OVERTAKEN

_POLL = 0.5  # [s]
_BEAT = 5.0  # [s] between two signs of life, at most
_PATIENCE = 600.0  # [s] for a run to save and end when it is taken over, where no launch.hang_timeout says it
_GRACE = 30.0  # [s] for processes to leave a lock when they were killed, or when the lock is only being tested


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveRecord:
    """What `live.json` says.

    Attributes:
        session: names one start of a run.
        command: what was started.
        pid: its process.
        birth: when that was started, by `processes.birth`.
        kernel: where its number means something, by `processes.kernel`.
        host: the name of the machine, for people.
        every: time between two signs of life [s].
        beat: counts them.
        time: of the last, by the clock of its machine, for people [s since the epoch].
    """

    session: str
    command: str
    pid: int
    birth: str
    kernel: str
    host: str
    every: Annotated[float, Field(gt=0.0, le=3600.0)]
    beat: int = 0
    time: float

    def __str__(self) -> str:
        ago = max(0.0, time.time() - self.time)
        return f"`mindmoe {shown(self.command)}`, process {self.pid} on {shown(self.host)}, alive {ago:.0f} s ago"


class Watch:
    """Looks from time to time whether this process shall stop; a context manager.

    Attributes:
        code: the exit code to stop with, 0 while nobody wants it to.
    """

    def __init__(self, every: float):
        self.code, self.every = 0, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self.every):
            self.look()

    def look(self) -> None:
        """Sets the code."""


class Hold(Watch):
    """A run folder, held for what this process starts.

    Args:
        folder: what is held; made if missing.
        launch: how long the silence of another machine lasts until it is taken for dead.
        command: what this process is, for people.
        takeover: end whoever is there, rather than refuse.
        name: of the files.

    Raises:
        UserError: on entering, somebody is there, or the folder cannot be written.
    """

    def __init__(self, folder: Path, launch: LaunchConfig, command: str, *, takeover: bool = False, name: str = "live"):
        # A quarter of the timeout: a beat or two may be lost before another machine takes this one for dead.
        super().__init__(min(_BEAT, launch.node_timeout / 4))
        self.folder, self.launch, self.takeover = folder, launch, takeover
        self.session = uuid.uuid4().hex
        self._files = _Files(folder, name)
        self._patience = launch.hang_timeout or _PATIENCE
        self._told = False
        self._record = LiveRecord(
            session=self.session,
            command=command,
            pid=os.getpid(),
            birth=birth(os.getpid()),
            kernel=kernel(),
            host=socket.gethostname(),
            every=self.every,
            time=time.time(),
        )

    def __enter__(self) -> "Hold":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files.open()
            self._take()
        except OSError as error:
            self._files.close()
            raise UserError(
                f"cannot write the run folder {shown(str(self.folder), 300)}: {error.strerror}",
                "set output_dir=... to a folder that you may write, or free some space",
            ) from None
        except BaseException:
            # A lock that stayed open would keep the folder from the next start in this process.
            self._files.close()
            raise
        super().__enter__()
        return self

    def __exit__(self, *rest: object) -> None:
        super().__exit__(*rest)
        # Whoever has taken the folder meanwhile keeps its record.
        found = self._files.read()
        if found is not None and found.session == self.session:
            self._files.remove()
        self._files.close()

    def look(self) -> None:
        """Gives a sign of life, unless another has taken the folder."""
        found = self._files.read()
        if found is not None and found.session != self.session:
            self.code = EXIT_OVERTAKEN
            return
        # Asked to end, it still gives signs of life: it is saving, and must not be taken for dead.
        if self._files.wanted_from() == self.session:
            self.code = EXIT_OVERTAKEN
        self._record = replace(self._record, beat=self._record.beat + 1, time=time.time())
        with suppress(OSError):
            self._files.write(self._record)

    def _take(self) -> None:
        """Waits until nobody is in the folder, and enters."""
        asked: float | None = None
        began = time.monotonic()
        while True:
            # Exclusive: had only when no process of any run shares it any more.
            exclusive = self._files.lock(fcntl.LOCK_EX)
            found = self._files.read()
            if self._is_over(found, exclusive) and self._enter(found, exclusive):
                return
            # Let go between two looks: a start that only waits must not pass for a run.
            self._files.lock(fcntl.LOCK_UN)
            now = time.monotonic()
            if now - began < self._grace(found):
                time.sleep(_POLL)
                continue
            if not self.takeover:
                raise UserError(
                    f"{shown(str(self.folder), 300)} is in use by {found or 'a process that has left no name'}",
                    "wait for its end, stop it, or start with --takeover, which makes it save and end first",
                )
            asked = now if asked is None else asked
            self._ask(found, now - asked)
            time.sleep(_POLL)

    def _is_over(self, found: LiveRecord | None, exclusive: bool | None) -> bool:
        """Whether what the record names has ended.

        Args:
            found: the record, None if there is none.
            exclusive: whether this process has the lock, None where the file system has no locks.
        """
        if found is None:
            return exclusive is not False
        # The boot of a machine, without the space of process numbers: locks reach across containers, numbers do not.
        here, there = kernel().partition(" ")[0], found.kernel.partition(" ")[0]
        if here and here == there:
            if exclusive is not None:
                return exclusive
            # No locks here: the recorded process itself, and ranks that it may have left behind, have to be gone.
            if found.kernel == kernel():
                return birth(found.pid) != found.birth and not marked(found.session, self.folder)
        return self._is_silent(found)

    def _grace(self, found: LiveRecord | None) -> float:
        """How long the folder may be locked before that is taken for somebody who stays [s]."""
        if found is None:  # another start is just entering, or only looks
            return _GRACE
        # Nothing to wait for: the one who is there lives or cannot be seen from here, or will be asked to end anyway.
        if self.takeover or found.kernel != kernel() or birth(found.pid) == found.birth:
            return 0.0
        if not self._told:
            print(f"{found} has gone from {self.folder}: waiting for its ranks, which save and end", flush=True)
            self._told = True
        return self._patience

    def _is_silent(self, found: LiveRecord) -> bool:
        """Whether what a record of another machine names gives no sign of life for long enough."""
        # Several beats long, so that a slow file system alone does not pass for death.
        limit = max(2 * self.launch.node_timeout, 4 * found.every)
        while (silence := self._files.age()) < limit:
            if not self._told:
                wait = f"waiting up to {limit - silence:.0f} s for a sign of life"
                print(f"{self.folder} was in use by {found}: {wait}", flush=True)
                self._told = True
            time.sleep(_POLL)
            # Any change is a sign of life, whatever clocks say; a record that has gone means an orderly end.
            if (later := self._files.read()) != found:
                return later is None
        return True

    def _enter(self, found: LiveRecord | None, exclusive: bool | None) -> bool:
        """Leaves the name of this process, and shares the lock with what it starts; False if another was faster."""
        # Without the exclusive lock another start may enter at the same time: the record shows who was first.
        if not exclusive and (self._files.lock(fcntl.LOCK_SH) is False or self._files.read() != found):
            return False
        self._files.write(self._record)
        self._files.remove_request()
        # flock(2) lets go of the exclusive lock before it takes the shared one: somebody may come between.
        return not exclusive or self._files.lock(fcntl.LOCK_SH) is not False

    def _ask(self, found: LiveRecord | None, waited: float) -> None:
        """Asks whoever is in the folder to end, and ends it on this machine when it does not."""
        if found is not None and self._files.wanted_from() != found.session:
            print(f"{self.folder} is in use by {found}: it is asked to save and end", flush=True)
            self._files.request(found.session)
        if waited < self._patience:
            return
        if found is not None:
            end_all(found.session, folder=self.folder)
        # Killed processes need a moment until the kernel has closed their locks.
        if waited > self._patience + _GRACE:
            raise UserError(
                f"{shown(str(self.folder), 300)} is still in use by {found or 'a process that has left no name'} "
                f"{waited:.0f} s after it was asked to end",
                "end that process yourself",
            )


class Member(Watch):
    """A rank of a launch: lives in the folder that its launcher holds, and only as long as that does.

    Args:
        folder: the run folder.
        launch: how long a phase may last, once nobody watches for hangs.

    Raises:
        UserError: on entering, the folder belongs to another start.
    """

    def __init__(self, folder: Path, launch: LaunchConfig):
        super().__init__(min(1.0, launch.node_timeout / 4))
        self.folder, self.launch = folder, launch
        self.session = launch_mark().partition(":")[0]
        self._files = _Files(folder, "live")
        # The count of phases tells a rank at work from a hung one (host/position.py).
        self._standing, self._since = standing(), time.monotonic()

    def __enter__(self) -> "Member":
        with suppress(OSError):
            self._files.open()
            deadline = time.monotonic() + _GRACE  # a start that looks whether anybody is here has the lock meanwhile
            while self._files.lock(fcntl.LOCK_SH) is False and time.monotonic() < deadline:
                time.sleep(_POLL)
        self.look()
        if self.code:
            self._files.close()
            raise UserError(f"{shown(str(self.folder), 300)} is not held for this rank any more", "launch again")
        super().__enter__()
        return self

    # The lock is kept beyond the exit: this process lives until it has gone.

    def look(self) -> None:
        """Whether the launcher has gone, or another start has taken the folder; a rank that then hangs ends."""
        found = self._files.read()
        if (found is not None and found.session != self.session) or self._files.wanted_from() == self.session:
            self.code = EXIT_OVERTAKEN
        elif launcher_gone(launcher()):
            self.code = EXIT_ORPHANED
        now, at = time.monotonic(), standing()
        # The clock runs once the launcher has gone, and starts anew with each phase: a rank that saves lives on.
        if at != self._standing or not self.code:
            self._standing, self._since = at, now
        # A first entry into a phase may compile, which takes longer than any wait for others.
        _, compiles = at
        patience = max(self.launch.hang_timeout, self.launch.compile_timeout if compiles else 0.0)
        if self.launch.hang_timeout and now - self._since > patience:
            os._exit(self.code)  # the launcher would have ended it


def joined(folder: Path, launch: LaunchConfig, at: Place, takeover: bool) -> Watch:
    """What watches over a training process: as part of its launch, or as the one that holds the folder for all."""
    if launch_mark():
        return Member(folder, launch)
    # Ranks that were started by other means than `mindmoe launch` have no mark: rank 0 holds the folder for them.
    return Hold(folder, launch, "train", takeover=takeover) if at.rank == 0 else Watch(_BEAT)


class _Files:
    """The files of a folder that say who is in it."""

    def __init__(self, folder: Path, name: str):
        self._lock, self._live, self._request = (folder / f for f in (f".{name}.lock", f"{name}.json", f".{name}.end"))
        self._fd = -1

    def open(self) -> None:
        # CLOEXEC: a child that has the descriptor would hold the lock beyond the end of this process.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(self._lock, flags, 0o666)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def lock(self, how: int) -> bool | None:
        """Whether the lock could be had, without waiting; None where the file system has none."""
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def read(self) -> LiveRecord | None:
        with suppress(UserError):
            return strict_json.checked(LiveRecord, strict_json.read(self._live, follow=False), str(self._live))
        return None

    def write(self, record: LiveRecord) -> None:
        replace_file(self._live, json.dumps(asdict(record)) + "\n")

    def remove(self) -> None:
        with suppress(OSError):
            self._live.unlink()

    def age(self) -> float:
        """Time since the record was written, by the clock of whoever holds the files [s]."""
        # The lock file is touched to learn the time of the server that keeps both files.
        os.utime(self._fd)
        with suppress(OSError):
            return os.fstat(self._fd).st_mtime - self._live.stat().st_mtime
        return 0.0

    def request(self, session: str) -> None:
        """Asks what a session names to end."""
        replace_file(self._request, json.dumps({"session": session}) + "\n")

    def wanted_from(self) -> str:
        """The session that is asked to end."""
        with suppress(UserError):
            value = strict_json.read(self._request, follow=False)
            return strict_json.checked(dict[str, str], value, str(self._request)).get("session", "")
        return ""

    def remove_request(self) -> None:
        with suppress(OSError):
            self._request.unlink()
