"""A patience that several tasks share: each has as long as any, and is ended for nobody else's sake."""

import asyncio

import pytest

from certfan.daemon.authority.patience import Patience


async def hang(patience: Patience) -> None:
    with patience:
        await asyncio.Event().wait()


async def test_each_has_as_long_from_its_own_beginning() -> None:
    """Who begins later ends later; who is done in time is left alone, and so is what it does next."""
    patience, loop = Patience(0.2), asyncio.get_running_loop()
    took = []

    async def begin(after: float) -> None:
        await asyncio.sleep(after)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await hang(patience)
        took.append(loop.time() - began)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(begin(0))
        tasks.create_task(begin(0.1))
        with patience:
            await asyncio.sleep(0)

    assert 2 == len(took)
    assert all(0.2 <= one < 1 for one in took)


async def test_a_task_may_be_patient_again_when_its_time_was_up() -> None:
    """It is no more cancelled than before."""
    patience = Patience(0.01)
    async with asyncio.timeout(5):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await hang(patience)

    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()


async def test_who_is_cancelled_by_others_stays_so() -> None:
    """Before its time is up, and in the same turn of the loop."""
    for patience in (Patience(60), Patience(0)):
        task = asyncio.create_task(hang(patience))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_fails_by_itself_is_told_as_it_is() -> None:
    """An error of the step is none of its time."""
    with pytest.raises(ValueError, match="its own"), Patience(60):
        raise ValueError("its own")
