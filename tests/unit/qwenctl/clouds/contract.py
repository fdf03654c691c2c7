"""What every provider must hold, as tests; import it to test a provider of your own.

::

    from tests.unit.qwenctl.clouds.contract import ProviderContract

    class TestMyCloud(ProviderContract):
        @pytest.fixture
        def provider(self): ...       # an instance that is stopped
        def count_starts(self, provider): ...
        def count_stops(self, provider): ...
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwenctl.clouds.base import Accepted, Conflict, Observation, Provider
from qwenctl.core.phase import Observed

__all__ = ["ProviderContract", "wait_for"]


def wait_for(provider: Provider, state: Observed, timeout: float = 10.0) -> Observation:
    """Look until the instance is in that state, as the controller does."""
    deadline = time.monotonic() + timeout
    while (seen := provider.describe()).state is not state:
        assert time.monotonic() < deadline, f"still {seen} after {timeout} s"
        time.sleep(provider.observe_interval)
    return seen


class ProviderContract:
    """Subclass it as ``Test…`` and give it the three things that follow."""

    timeout = 10.0
    """Seconds that the provider under test may take to start or to stop."""

    @pytest.fixture
    def provider(self) -> Provider:
        """A provider whose instance is stopped."""
        raise NotImplementedError

    def count_starts(self, provider: Provider) -> int:
        """How many start calls the cloud has accepted."""
        raise NotImplementedError

    def count_stops(self, provider: Provider) -> int:
        """How many stop calls the cloud has accepted."""
        raise NotImplementedError

    def test_it_is_a_provider(self, provider: Provider) -> None:
        assert isinstance(provider, Provider)
        assert provider.call_timeout > 0
        assert provider.observe_interval > 0

    def test_describe_in_state_stopped_changes_nothing(self, provider: Provider) -> None:
        assert [provider.describe().state for _ in range(3)] == [Observed.STOPPED] * 3
        assert self.count_starts(provider) == 0

    def test_stop_in_state_stopped_does_nothing(self, provider: Provider) -> None:
        provider.stop()
        assert provider.describe().state is Observed.STOPPED
        assert self.count_stops(provider) == 0

    def test_a_whole_life(self, provider: Provider) -> None:
        assert isinstance(provider.start(), Accepted)
        assert provider.describe().state in (Observed.STARTING, Observed.RUNNING)
        running = wait_for(provider, Observed.RUNNING, self.timeout)
        assert running.address
        assert running.instance_id
        assert isinstance(provider.stop(), Accepted)
        assert provider.describe().state in (Observed.STOPPING, Observed.STOPPED)
        wait_for(provider, Observed.STOPPED, self.timeout)
        assert (self.count_starts(provider), self.count_stops(provider)) == (1, 1)

    def test_it_can_be_started_again(self, provider: Provider) -> None:
        for _ in range(2):
            provider.start()
            wait_for(provider, Observed.RUNNING, self.timeout)
            provider.stop()
            wait_for(provider, Observed.STOPPED, self.timeout)
        assert (self.count_starts(provider), self.count_stops(provider)) == (2, 2)

    def test_start_in_state_starting_or_running_is_success(self, provider: Provider) -> None:
        provider.start()
        provider.start()
        wait_for(provider, Observed.RUNNING, self.timeout)
        provider.start()
        assert provider.describe().state is Observed.RUNNING
        assert self.count_starts(provider) == 1

    def test_stop_in_state_starting_is_conflict_or_stops(self, provider: Provider) -> None:
        provider.start()
        try:
            provider.stop()
        except Conflict:
            wait_for(provider, Observed.RUNNING, self.timeout)
            provider.stop()
        wait_for(provider, Observed.STOPPED, self.timeout)

    def test_start_in_state_stopping_is_conflict(self, provider: Provider) -> None:
        provider.start()
        wait_for(provider, Observed.RUNNING, self.timeout)
        provider.stop()
        assert provider.describe().state is Observed.STOPPING
        with pytest.raises(Conflict):
            provider.start()
        provider.stop()
        wait_for(provider, Observed.STOPPED, self.timeout)
        assert (self.count_starts(provider), self.count_stops(provider)) == (1, 1)

    def test_starts_at_the_same_time_start_once(self, provider: Provider) -> None:
        with ThreadPoolExecutor(8) as pool:
            for result in [pool.submit(provider.start) for _ in range(8)]:
                result.result()
        wait_for(provider, Observed.RUNNING, self.timeout)
        assert self.count_starts(provider) == 1
