"""A circuit breaker: after some misses in a row a source is left alone for a while (dry)."""


class Breaker:
    """Opens after `trip` misses in a row and closes after `cooldown` refused calls."""

    def __init__(self, trip: int, cooldown: int):
        self.trip, self.cooldown = trip, cooldown
        self.misses = 0
        self.remaining = 0

    @property
    def is_open(self) -> bool:
        """Whether calls are refused."""
        return self.remaining > 0

    def allows(self) -> bool:
        """Whether the source may be asked now; each refusal counts towards closing."""
        if self.remaining:
            self.remaining -= 1
            return False
        return True

    def record(self, success: bool) -> None:
        """Takes note of how an allowed call ended."""
        self.misses = 0 if success else self.misses + 1
        if self.misses >= self.trip:
            self.misses, self.remaining = 0, self.cooldown
