# Sourced in joined guests after join.sh, in a run with --share: `ssh A` and `ssh B` work in both without a password.
# Hosts are named A and B, know each other's keys, and what ssh starts finds this shell's PATH. Each key is made here,
# in files that are gone with the guest; only its public half crosses the shared folder.
set -e
hostname "$GUEST_ROLE"
printf '%s\n' '10.8.0.1 A' '10.8.0.2 B' >>/etc/hosts
cp -rsn "$GUEST_SSH_SERVER/usr" /
grep -q ^sshd: /etc/passwd || echo 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
sed -i 's/^root:!/root:*/' /etc/shadow # a locked account is let in by no key

# bash reads it where sshd starts it, and a host's own may do anything: pyenv's lines take 8 s under emulation, each time.
: >/root/.bashrc
# In place of the host's own ~/.ssh, which is root's here too.
mkdir -p /run/sshd /root/.ssh
mount -t tmpfs -o mode=700 ssh /root/.ssh
# A session costs 10 s of emulation: all go through the first one's connection.
printf '%s\n' 'ControlMaster auto' 'ControlPath /run/ssh-%h' 'ControlPersist yes' >/root/.ssh/config
ssh-keygen -q -t ed25519 -N '' -C "$GUEST_ROLE" -f /root/.ssh/id_ed25519
cp /root/.ssh/id_ed25519.pub "$GUEST_SHARE/$GUEST_ROLE.part"
mv "$GUEST_SHARE/$GUEST_ROLE.part" "$GUEST_SHARE/$GUEST_ROLE.pub"
for role in A B; do
    until [ -e "$GUEST_SHARE/$role.pub" ]; do sleep 0.1; done
    cat "$GUEST_SHARE/$role.pub" >>/root/.ssh/authorized_keys
    echo "$role $(cut -d ' ' -f 1,2 "$GUEST_SHARE/$role.pub")" >>/root/.ssh/known_hosts
done
cat >/root/.ssh/server <<END
HostKey /root/.ssh/id_ed25519
AuthorizedKeysFile /root/.ssh/authorized_keys
UsePAM no
SetEnv "PATH=$PATH"
END
/usr/sbin/sshd -f /root/.ssh/server
peer=$([ "$GUEST_ROLE" = A ] && echo B || echo A)
until ssh -o BatchMode=yes "$peer" true; do sleep 0.3; done
set +e
