"""The channel between processes, without jax: values, votes, one end."""

import os
import random
import socket
import threading
import time

import pytest
from test_meeting import a_place

from gpt_jax.config import InputError
from gpt_jax.machine import channel as channel_lib
from gpt_jax.machine import meeting


def met(count: int) -> list:
  """Returns the channels of `count` processes, all in this one."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  channels = [None] * count

  def meet(index):
    place = a_place(index, count, port, 10.0)
    channels[index] = channel_lib.Channel(place, meeting.meet(place, {}))
    channels[index].start()

  run_all(meet, count)
  return channels


def run_all(function, count: int) -> None:
  threads = [
    threading.Thread(target=function, args=[i], daemon=True)
    for i in range(count)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
    assert not thread.is_alive()


def calls_until_stopped(channels, asked: int) -> list[int]:
  """Has all loop at speeds of their own; one asks to stop halfway."""
  calls = [0] * len(channels)

  def work(index):
    order = random.Random(index)
    while channels[index].check(calls[index]) is None:
      calls[index] += 1
      time.sleep(order.random() * 0.004)
      if index == asked and calls[index] == 20:
        os.write(channels[index].waker, bytes([75]))

  run_all(work, len(channels))
  run_all(lambda i: channels[i].leave(), len(channels))
  return calls


@pytest.mark.parametrize("asked", [0, 2])
def test_all_stop_at_the_same_call(asked):
  calls = calls_until_stopped(met(4), asked)
  assert len(set(calls)) == 1 and calls[0] >= 20


def test_without_being_held_they_would_stop_at_different_calls():
  channels = met(4)
  for channel in channels:
    # The control: as if each stopped where the word reaches it.
    channel._vote = lambda k, passed: None
    channel._hold = lambda channel=channel: channel._set_stop(0, 75)
  assert len(set(calls_until_stopped(channels, 2))) > 1


def test_values_are_process_0s_and_differences_are_everyones():
  channels, seen = met(3), [None] * 3

  def work(index):
    channel = channels[index]
    values = [channel.share(lambda: [index, "word"]) for _ in range(3)]
    channel.agree("the data", "one")
    try:
      channel.agree("the data", "one" if index < 2 else "two")
    except InputError as error:
      seen[index] = values, str(error)
    channel.leave()

  run_all(work, 3)
  sentence = "the data ('two' in process 2, 'one' in process 0)"
  for values, error in seen:
    assert values == [[0, "word"]] * 3 and sentence in error
