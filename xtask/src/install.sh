# Installs Debian packages for the tests, which start by themselves what they need: no service of these packages, or of those
# that come with them, is started now or enabled for the next boot.
set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    # 101: forbidden, see invoke-rc.d(8).
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
installed() { dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' | sed -n 's/ installed$//p'; }
before=" $(installed | tr '\n' ' ') "
apt-get update
apt-get install --yes --no-install-recommends "$@"
for package in $(installed); do
    case "$before" in *" $package "*) continue ;; esac
    for file in $(dpkg-query --listfiles "$package"); do
        case "$file" in
        */systemd/system/*.service | */systemd/system/*.socket | */systemd/system/*.timer | */systemd/system/*.path)
            find /etc/systemd/system -type l -lname "*/${file##*/}" -delete 2>/dev/null || true
            ;;
        /etc/init.d/*) update-rc.d "${file##*/}" disable >/dev/null ;;
        esac
    done
done
