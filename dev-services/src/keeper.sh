# Runs one server and ensures that nothing of it outlives its owner.
#
#   sh -c keeper.sh keeper FOLDER SIGNAL PATIENCE CMD ARGS…
#
# The owner holds the other end of stdin and writes one command per line: `start` runs CMD;
# `after PID` makes the keeper wait for that process before it ends the server. End of file means
# that the owner has dropped the server or has died in any way: the server is signalled until it has
# exited, and FOLDER is removed. While CMD runs, FOLDER/pid contains its process id. When it has
# exited, FOLDER/ended contains its exit code.

# A stopped server in an orphaned group makes the kernel send SIGHUP to the whole group, including
# this shell.
trap '' HUP
folder=$1 signal=$2 patience=$3
shift 3
after=

# Created here instead of by the owner, who could be killed before it starts this shell.
mkdir -m 755 "$folder" && cd "$folder" || exit 1

while read -r word argument; do
  case $word in
    start)
      (
        "$@" </dev/null >>"$folder/log" 2>&1 &
        echo $! >"$folder/pid"
        wait $!
        echo $? >"$folder/ended"
      ) &
      ;;
    after) after=$argument ;;
  esac
done

# Waits at most 10 s for the process that uses the server, then PATIENCE seconds until SIGKILL.
tries=0
while [ -n "$after" ] && [ $tries -lt 100 ] &&
  { kill -0 "$after" 2>/dev/null || [ -d "/proc/$after" ]; }; do
  tries=$((tries + 1))
  sleep 0.1
done

# Repeats the signal, because one that arrives while the server is being set up is lost.
tries=0
if [ -s "$folder/pid" ]; then
  read -r server <"$folder/pid"
  while [ ! -e "$folder/ended" ] && [ $tries -lt $((patience * 20 + 200)) ]; do
    [ $tries -eq $((patience * 20)) ] && signal=KILL
    [ $((tries % 2)) -eq 0 ] && kill -s "$signal" "$server" 2>/dev/null &&
      kill -s CONT "$server" 2>/dev/null
    tries=$((tries + 1))
    sleep 0.05
  done
fi
cd / && rm -rf "$folder"
