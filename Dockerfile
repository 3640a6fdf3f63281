# One image for both programs: the API is its default command, the worker is `python worker.py`.
# Run alone it is a whole demo, on SQLite in /data; the volume keeps the tasks when the container is removed:
#   docker build -t taskmanager . && docker run -p 127.0.0.1:5000:5000 -v taskmanager:/data taskmanager
FROM python:3.13-slim

# The folders belong to the user before anything is mounted there: a new volume takes over the owner of its folder.
RUN groupadd --gid 10001 app \
 && useradd --uid 10001 --gid app --create-home app \
 && install -d -o app -g app /data /var/log/taskmanager

# The dependencies change rarely and the programs often, so each has its own layer.
WORKDIR /app
COPY requirements.txt requirements-sqlite.txt ./
RUN pip install --require-hashes --no-cache-dir --root-user-action=ignore -r requirements.txt

COPY . .
# A checkout made under a strict umask must still be readable for the user below.
RUN python -m compileall -q taskmanager.py worker.py && chmod -R a+rX .

# By number, so that who starts the image can see that it is not root.
USER 10001:10001
ENV HOST=0.0.0.0 DATABASE_URL=sqlite:////data/tasks.db PYTHONUNBUFFERED=1
# Inside, every address is open; a page of another site must not lead a name of its own here (DNS rebinding).
ENV ALLOWED_HOSTS=localhost,127.0.0.1,[::1]
EXPOSE 5000
# As a module it needs 14 MB less: of a file that Python is told to run, it keeps the syntax tree.
CMD ["python", "-m", "taskmanager"]
