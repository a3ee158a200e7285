# Puts mutants into a tree, each behind a switch, so that all of them are built once: perl switch.pl TREE NAME...
#
# The innermost function around a mutant's text becomes `if mutants::on("NAME") { mutated body } else { body }`, which is
# found by indentation, because the code is formatted. Prints `FILE FIRST LAST NAME` for each switch, lines of the new file;
# nothing for a mutant that is not inside the body of a plain function.
use strict;
use warnings;

my ($tree, @names) = @ARGV;
my (%text, %bodies);
for my $name (@names) {
    my $mutant = slurp("$tree/tests/mutants/$name.mutant");
    my ($path) = $mutant =~ /^file: (\S+)$/m or die "$name names no file\n";
    my ($old, $new) = $mutant =~ /^--- old\n(.*?)\n--- new\n(.*?)\n?--- end\n/ms or die "$name is not a mutant\n";
    my $text = $text{$path} //= slurp("$tree/$path");
    my $at = index($text, $old);
    die "$name does not apply\n" if $at < 0 || index($text, $old, $at + 1) >= 0;
    my ($from, $to) = body($text, $at, $at + length $old) or next;
    my $body = substr($text, $from, $to - $from);
    my $mutated = $body;
    substr($mutated, $at - $from, length $old) = $new;
    push @{ $bodies{$path}{"$from $to"} }, [$name, $mutated];
}
for my $path (sort keys %bodies) {
    my $text = $text{$path};
    my @places = sort { (split ' ', $b)[0] <=> (split ' ', $a)[0] } keys %{ $bodies{$path} };
    for my $place (@places) {
        my ($from, $to) = split ' ', $place;
        my $body = substr($text, $from, $to - $from);
        my $switched = join '', map { "\nif crate::mutants::on(\"$_->[0]\") {$_->[1]} else" } @{ $bodies{$path}{$place} };
        substr($text, $from, $to - $from) = "$switched {$body}\n";
    }
    my ($line, $first, $name) = (0, 0);
    for (split /\n/, $text) {
        $line++;
        if (/^if crate::mutants::on\("([^"]*)"\) \{$/) {
            ($first, $name) = ($line, $1);
        } elsif (defined $name && /^\} else/) {
            print "$path $first $line $name\n";
            undef $name;
        }
    }
    open(my $out, '>', "$tree/$path") or die "$path: $!\n";
    print $out $text;
}

# Where the body of the function around these offsets begins and ends.
sub body {
    my ($text, $from, $to) = @_;
    my $line = rindex($text, "\n", $from) + 1;
    substr($text, $line) =~ /^( *)/;
    my $indent = length $1;
    while ($line > 0) {
        $line = rindex($text, "\n", $line - 2) + 1;
        next unless substr($text, $line) =~ /^( *)(?:pub(?:\([^)]*\))? )?(?:async |unsafe )*fn /;
        my $outer = $1;
        next if length $outer >= $indent;
        # A signature of several lines ends with a line of the function's own indentation.
        my $head = substr($text, $line);
        return unless $head =~ /^(?:[^\n]* \{\n|[^\n]*\n(?:$outer +[^\n]*\n|${outer}where\n)*$outer(?:\)[^\n]* )?\{\n)/;
        my $begin = $line + length($&) - 1;
        my $end = index($text, "\n$outer}\n", $begin);
        return if $begin > $from || $end < $to;
        return ($begin, $end + 1);
    }
    return;
}

sub slurp {
    my ($path) = @_;
    open(my $in, '<', $path) or die "$path: $!\n";
    local $/;
    return <$in>;
}
