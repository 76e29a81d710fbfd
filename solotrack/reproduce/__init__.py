"""Result tables as data, the plans that fill them, and what is written about them.

``settings`` has the trainings and ``tables`` the rows that stand on them, ``planning`` turns them into a plan of commands, ``results``
reads what these left, ``report`` and ``plots`` write it down.
"""
