# Keeps one server, and lets nothing of it outlive its owner.
#
#   sh -c keeper.sh keeper FOLDER SIGNAL PATIENCE CMD ARGS…
#
# The owner holds the other end of stdin. Each line it writes is a word: `start` runs CMD; `after PID` says to let that process end
# first. End of file says that the owner has dropped the server or is dead, however it died: the server is signalled until it is
# gone, and FOLDER is removed. While CMD runs its process id is in FOLDER/pid; once it has ended its code is in FOLDER/ended.

# A stopped server in an orphaned group makes the kernel send HUP to the whole group. We have work to do.
trap '' HUP
folder=$1 signal=$2 patience=$3
shift 3
after=

# The folder is made here and not by the owner, who may be killed between making it and starting us.
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

# At most 10 s for the process that uses the server, then PATIENCE seconds until the server is killed.
tries=0
while [ -n "$after" ] && [ $tries -lt 100 ] && { kill -0 "$after" 2>/dev/null || [ -d "/proc/$after" ]; }; do
  tries=$((tries + 1))
  sleep 0.1
done

# Again and again: a signal sent while the server is still being set up is lost.
tries=0
if [ -s "$folder/pid" ]; then
  read -r server <"$folder/pid"
  while [ ! -e "$folder/ended" ] && [ $tries -lt $((patience * 20 + 200)) ]; do
    [ $tries -eq $((patience * 20)) ] && signal=KILL
    [ $((tries % 2)) -eq 0 ] && kill -s "$signal" "$server" 2>/dev/null && kill -s CONT "$server" 2>/dev/null
    tries=$((tries + 1))
    sleep 0.05
  done
fi
cd / && rm -rf "$folder"
