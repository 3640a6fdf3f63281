"""make chaos: break everything around Task Manager, and account for every task.

A stage (stage.py) is a PostgreSQL, a RabbitMQ, two API processes and three workers, all its own. Producers
(producers.py) offer tasks at both doors all the time, as the documentation tells them to, and write down what
they were told. Scenarios (scenarios.py) break one thing each. When a scenario has put its thing right again,
the accounting (accounting.py) compares

    what each client was told       a 201 with ids, or a message that the broker has confirmed
    what the table holds            read with plain SQL, not through Task Manager
    each change of a status         which a trigger in the database notes
    what each attempt did           which the handlers (handlers.py) write into a log of their own

and prints a line of the table:

    offered, accepted       tasks that clients have sent, and those of which they were told that they are kept
    completed               tasks that ended as they should
    lost                    accepted, and not there, or not completed, or not in the queue of rejected ones
    doubled                 created twice where that was excluded; completed twice, or by an attempt that
                            was not the current one; an attempt that two workers ran
    more runs               runs of handlers beyond the first of each task, and how many the fault explains
    pause                   the longest time in seconds without a completed task
    recovery                seconds from the end of the fault until everything that was accepted before is
                            completed and a new task from each producer, too

The exit status is 1 when a task was lost or doubled, when more handlers ran than the fault explains, or when
the recovery took longer than a minute; then all that is known about these tasks is printed.

Variables of make:

    SCENARIO="worker_killed standby"   scenarios or groups with one of these words in their names; all of them
    SEED=17                            makes the same choices again; it is printed
    MINUTES=30                         after each scenario alone, scenarios at random together for so long
    JOBS=3                             stages at the same time

What it can't show: tasks of the document's own producer, whose queue is not durable, may be lost with the
broker (they are counted apart, in the notes); a message without message_id may become two tasks; a request
without Idempotency-Key that got no answer may have made a task.
"""
