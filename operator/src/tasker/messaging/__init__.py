"""Messages between programs: queues of JSON in Postgres or in memory, behind one protocol.

Steps do not travel here: they have a queue of their own in the engine. This is for what programs tell each other.
"""

from tasker.messaging.client import MessageClient
from tasker.messaging.consumer import Consumer, ConsumerSettings, Received, Reject
from tasker.messaging.kinds import SimpleStepMessage, StepExecutionError, StepExecutionResult, TaskRequestMessage
from tasker.messaging.memory import InMemoryMessaging, MemoryBroker, MovableClock
from tasker.messaging.postgres import PostgresMessaging
from tasker.messaging.service import MessagingService, SupportsPushNotifications
from tasker.messaging.types import (
    Available,
    Death,
    Delivered,
    Health,
    Message,
    MessageNotification,
    QueueStats,
    Receipt,
)

__all__ = [
    "Available",
    "Consumer",
    "ConsumerSettings",
    "Death",
    "Delivered",
    "Health",
    "InMemoryMessaging",
    "MemoryBroker",
    "Message",
    "MessageClient",
    "MessageNotification",
    "MessagingService",
    "MovableClock",
    "PostgresMessaging",
    "QueueStats",
    "Receipt",
    "Received",
    "Reject",
    "SimpleStepMessage",
    "StepExecutionError",
    "StepExecutionResult",
    "SupportsPushNotifications",
    "TaskRequestMessage",
]
